"""The `hardmoe` command, a file for each group of subcommands."""
