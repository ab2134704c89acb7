"""`reconsup status`: asks a supervisor, or the database, and shows what they say, once or again and again."""
