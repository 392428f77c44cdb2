"""Dagster's UI as `hardmoe ui` starts it: code server, guarded webserver and daemon.

`dagster dev` is not used: it starts a webserver of its own, in front of which nothing can be put; killed, it leaves
webserver and daemon behind; and at SIGINT it leaves the code server while a run is under way.
"""
