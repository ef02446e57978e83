"""One module a verb: each asks the library and renders what it says."""
