"""Sets up Covey's device side over SSH on a board that already runs Debian or Ubuntu, and takes it off again.

Looks at the board first, makes a plan out of what it finds, and changes only what the plan says. What a board gets
is what a card gets: server.flash makes it.

May import: flash; of edge_runtime: update, errors.
Must never come in: the ledger, rounds, jobs, printing, a second layout of what is on a board.
"""
