"""The commands of the command line, one a file. Nothing heavy is imported until a command runs."""
