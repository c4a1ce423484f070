"""What keeps workflow code repeatable: what it may not do, and how it is found out."""
