"""Which runs an experiment needs, and training them one after the other, each in a process of its own."""
