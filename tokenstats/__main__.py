from tokenstats.cli import main

main()
