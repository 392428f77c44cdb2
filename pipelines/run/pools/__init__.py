"""Where the work of `hardmoe run` is carried out."""
