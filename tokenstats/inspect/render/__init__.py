"""Results as text, HTML and figures. ``…_blocks.py`` has what is said, ``terminal.py`` and ``templates/`` how it looks."""
