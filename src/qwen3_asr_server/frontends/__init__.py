"""The doors: thin modules that parse a request, call the runtime and format its answer.

A module without a leading underscore that exposes `router` is an HTTP front end and is served as soon as it exists.
"""
