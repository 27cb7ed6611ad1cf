"""From text to boxes, documents, events and actions, mapped to the original image. Calls no model."""
