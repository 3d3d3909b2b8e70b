"""The API of AUTOMATIC1111's web UI, `/sdapi/v1`, scoped to who asks: a face over the same jobs as OpenAI's API."""
