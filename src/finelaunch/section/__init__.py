"""The base of every configuration: typed frozen sections, YAML with origins, and errors that name both."""
