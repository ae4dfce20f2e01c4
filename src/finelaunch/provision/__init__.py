"""What has to be there before a job starts: files fetched beforehand, and a look at the place where it will run."""
