"""One module a command: its arguments, paths and printing. The work is done in the rooms below."""
