"""What tests on boards stand on: boards under labgrid, a server that they join, and budgets with what was measured."""
