"""Remote data sets, behind a web server or a command: files are fetched into a bounded cache."""
