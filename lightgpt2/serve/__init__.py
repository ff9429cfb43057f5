"""A server over `runtime`: OpenAI's endpoints, and a page that completes what is typed. It needs the extra `serve`."""
