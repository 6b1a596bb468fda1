"""Jobs, rounds, offers and devices; ledgers that have them are stamped, none is made so any more."""

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Do nothing: a new ledger gets the newest schema at once."""
