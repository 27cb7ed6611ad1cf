"""From text to boxes, documents, events and actions, mapped to the original picture. Calls no model."""
