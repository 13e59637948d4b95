"""The subcommands of ``ghn-fast``, a module for each part of the house."""
