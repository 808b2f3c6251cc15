"""The command that runs the app."""

import sys
from importlib.util import find_spec
from pathlib import Path

from tokenstats.errors import InputError

# no usage statistics leave the machine; Streamlit's own greeting would cover the page; thresholds have a value to begin with
# and are set by the histograms too, which Streamlit would warn of
_OPTIONS = {
    "global.disableWidgetStateDuplicationWarning": "true",
    "browser.gatherUsageStats": "false",
    "server.showEmailPrompt": "false",
    "logger.hideWelcomeMessage": "true",
    "client.toolbarMode": "minimal",
    "client.showSidebarNavigation": "false",
    "theme.light.primaryColor": "#0a5c91",
    "theme.light.backgroundColor": "#ffffff",
    "theme.light.secondaryBackgroundColor": "#f6f5f2",
    "theme.light.textColor": "#22252a",
    "theme.dark.primaryColor": "#7cc6f2",
    "theme.dark.backgroundColor": "#15171b",
    "theme.dark.secondaryBackgroundColor": "#1e2126",
    "theme.dark.textColor": "#e8e8e6",
}


def app_command(
    store: str | Path | None = None, port: int | None = None, *, address: str = "127.0.0.1", headless: bool = False
) -> list[str]:
    """The command line that serves the app: ``python -m streamlit run …/home.py -- STORE``.

    Raises InputError where Streamlit is not installed or the path is not there.

    Args:
        store: A store, or a folder with stores below it; None: the app asks.
        port: None: Streamlit's own choice.
        address: 127.0.0.1 serves this machine alone.
        headless: Do not open a browser.
    """
    if find_spec("streamlit") is None:
        raise InputError("the app needs Streamlit; install it with: pip install 'tokenstats[app]'")
    if store is not None and not Path(store).is_dir():
        raise InputError(f"no folder at {store}; expected a store, or a folder with stores below it")
    options = {**_OPTIONS, "server.address": address, "server.headless": str(headless).lower()}
    if port is not None:
        options["server.port"] = str(port)
    flags = [f"--{name}={value}" for name, value in options.items()]
    place = ["--", str(Path(store).resolve())] if store is not None else []
    return [sys.executable, "-m", "streamlit", "run", str(app_file()), *flags, *place]


def app_file() -> Path:
    """``home.py``: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for path in (package / "_app" / "home.py", package.parent / "app" / "home.py"):
        if path.is_file():
            return path
    raise InputError("the app's home.py is missing from this installation; install tokenstats again")
