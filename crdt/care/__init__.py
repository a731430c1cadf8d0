"""Care of the database: verify, compact, back up, restore; and what a copy from an earlier time must give up."""
