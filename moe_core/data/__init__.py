"""Posts: where they come from, what is kept of them, and how they are stored."""
