"""One protocol over whatever answers: our engine, any OpenAI-compatible server, a fake."""
