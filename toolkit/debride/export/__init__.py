"""A cleaned model for the edge: in ORT format, in eight bits or in half precision, and graded before it is written."""
