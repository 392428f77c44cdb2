"""What every stage that trains a network shares."""
