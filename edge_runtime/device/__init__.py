"""This machine: board, sensors, power, free memory, and whether its owner's rules let it train now.

Unknown is None, never 0.

May import: protocol, host, errors.
Must never come in: training, the network, a board's name in an if.
"""
