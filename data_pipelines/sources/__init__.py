"""Images as their publishers give them, as samples that are ready to be written as shards."""
