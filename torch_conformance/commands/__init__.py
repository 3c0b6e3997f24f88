"""Commands that show or run the specification, one module each: `configure` its parser, `execute` it."""
