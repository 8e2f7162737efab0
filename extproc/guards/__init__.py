"""Refusing requests and answers for what their texts say."""
