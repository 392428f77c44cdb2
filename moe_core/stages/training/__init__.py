"""Parts shared by the stages that train a network."""
