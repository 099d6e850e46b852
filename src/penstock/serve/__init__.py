"""The prediction server: a model by itself over HTTP."""
