"""Commands that are more than a start of the server. Used by `cli`, which gives them what the settings lead to."""
