"""The commands of `hardmoe`, a file for each thing one comes to do."""
