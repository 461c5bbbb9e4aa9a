"""Hugging Face and ModelScope: what a repository holds, the download, the caches, and the lock file of
commits.
"""
