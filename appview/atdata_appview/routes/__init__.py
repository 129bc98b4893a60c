"""The routes: a module for each noun that the methods ask about, and one for what a service says of itself."""
