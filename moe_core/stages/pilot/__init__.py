"""The pilot: what a mixture would gain, told before its experts are trained."""
