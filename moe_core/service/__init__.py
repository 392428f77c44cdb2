"""A mixture that answers over HTTP: `create_app` of app.py is the application, `hardmoe serve` runs it."""
