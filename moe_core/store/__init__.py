"""Content-addressed artifacts under one root; knows no stage and no study."""
