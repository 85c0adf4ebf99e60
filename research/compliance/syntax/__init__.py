"""Python source as the rules read it: files, functions, names, who calls whom, and what a body does on each of its ways."""
