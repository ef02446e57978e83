"""The command line: parse, call the library, render. It holds no logic of its own."""
