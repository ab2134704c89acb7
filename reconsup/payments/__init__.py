"""What a payment request is and what must become of it. Pure: no clock, no database, no chain, no log."""
