"""What can be set, declared once: dataclasses that the library takes and the command line is made from."""
