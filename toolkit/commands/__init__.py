"""What the commands of the command line share, and those that look at what was made."""
