"""The routes, a module for each kind of need. They check, call and shape; they hold no rules."""
