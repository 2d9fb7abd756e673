"""Where data sets come from: names, folders, tables, archives and hubs."""
