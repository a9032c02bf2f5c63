DROP TABLE board_counts, board_entries;
