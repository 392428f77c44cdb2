"""What several test files share: studies, sources, hostile files, and programs that tests run or kill."""
