"""What every room needs: files, settings, processes. It imports nothing of the package."""
