"""Raw event files in, one clean row for every (user, item) pair out."""
