"""What the kernel says and gives: its small files, the process's control groups, and the threads that may run.

Unknown is None, never 0. Whoever starts threads asks here how many, so that no library's own default decides.

May import: nothing of its side.
Must never come in: a board's name, the network, anything that computes.
"""
