# What the JIT emits for sw/bpf/programs, by `python -m sw.bpf.jit.derive`: llvm-mca 19.1.7, broadwell.
# Of each block: cycles by x86.toml, loads and stores included; cycles by llvm-mca, in a row of itself: a
# block that loads into the register it loads from waits for itself, which in a program it does not.

drop_all:
slot_0:  # 2.25; 2.25
    nop dword ptr [rax + rax]
    nop dword ptr [rax]
    push rbp
    mov rbp, rsp
    mov eax, 1
    leave
    ret

firewall:
slot_0:  # 2.75; 7.00
    nop dword ptr [rax + rax]
    nop dword ptr [rax]
    push rbp
    mov rbp, rsp
    sub rsp, 8
    mov eax, 2
    mov rsi, qword ptr [rdi + 8]
    mov rdx, qword ptr [rdi + 0]
    mov rdi, rdx
    add rdi, 14
    cmp rdi, rsi
    ja slot_57
slot_6:  # 0.50; 0.50
    movzx rcx, word ptr [rdx + 12]
    cmp ecx, 8
    je slot_25
slot_8:  # 0.25; 0.25
    cmp ecx, 43144
    je slot_10
slot_9:  # 0.25; 0.25
    cmp ecx, 129
    jne slot_57
slot_10:  # 0.75; 0.75
    mov rdi, rdx
    add rdi, 18
    cmp rdi, rsi
    ja slot_57
slot_13:  # 0.50; 0.50
    movzx rcx, word ptr [rdx + 16]
    cmp ecx, 8
    je slot_25
slot_15:  # 0.25; 0.25
    cmp ecx, 43144
    je slot_17
slot_16:  # 0.25; 0.25
    cmp ecx, 129
    jne slot_57
slot_17:  # 0.75; 0.75
    mov rdi, rdx
    add rdi, 22
    cmp rdi, rsi
    ja slot_57
slot_20:  # 0.50; 0.50
    movzx rcx, word ptr [rdx + 20]
    cmp ecx, 8
    jne slot_57
slot_22:  # 0.50; 1.00
    add rdx, 42
    cmp rdx, rsi
    ja slot_57
slot_24:  # 0.25; 0.50
    jmp slot_28
slot_25:  # 0.75; 0.75
    mov rdx, rdi
    add rdx, 20
    cmp rdx, rsi
    ja slot_57
slot_28:  # 0.50; 0.50
    movzx rdx, byte ptr [rdi + 9]
    cmp edx, 17
    je slot_31
slot_30:  # 0.25; 0.25
    cmp edx, 6
    jne slot_57
slot_31:  # 0.75; 0.75
    movzx rdx, word ptr [rdi + 6]
    and edx, 65311
    test edx, edx
    jne slot_57
slot_34:  # 1.00; 1.00
    movzx rdx, byte ptr [rdi + 0]
    shl edx, 2
    and edx, 60
    cmp edx, 20
    jb slot_57
slot_38:  # 1.00; 3.00
    add rdi, rdx
    mov rdx, rdi
    add rdx, 4
    cmp rdx, rsi
    ja slot_57
slot_42:  # 2.00; 2.00
    movzx rdi, word ptr [rdi + 2]
    mov word ptr [rbp - 2], di
    mov rsi, rbp
    add rsi, -2
    movabs rdi, 36864
    call helper
slot_49:  # 0.25; 0.25
    test rax, rax
    je slot_51
slot_50:  # 0.25; 1.00
    add rax, 56
slot_51:  # 0.75; 0.75
    mov rdi, rax
    mov eax, 2
    test rdi, rdi
    je slot_57
slot_54:  # 1.25; 0.50
    mov esi, 1
    lock add qword ptr [rdi + 0], rsi
    mov eax, 1
slot_57:  # 1.00; 6.00
    leave
    ret

mac_swap_tx:
slot_0:  # 2.50; 5.00
    nop dword ptr [rax + rax]
    nop dword ptr [rax]
    push rbp
    mov rbp, rsp
    xor eax, eax
    mov rsi, qword ptr [rdi + 8]
    mov rdi, qword ptr [rdi + 0]
    mov rdx, rdi
    add rdx, 14
    cmp rdx, rsi
    ja slot_19
slot_6:  # 6.00; 6.00
    movzx rsi, word ptr [rdi + 0]
    movzx rdx, word ptr [rdi + 6]
    mov word ptr [rdi + 0], dx
    movzx rdx, word ptr [rdi + 8]
    movzx rcx, word ptr [rdi + 2]
    mov word ptr [rdi + 8], cx
    mov word ptr [rdi + 2], dx
    movzx rdx, word ptr [rdi + 10]
    movzx rcx, word ptr [rdi + 4]
    mov word ptr [rdi + 10], cx
    mov word ptr [rdi + 6], si
    mov word ptr [rdi + 4], dx
    mov eax, 3
slot_19:  # 1.00; 6.00
    leave
    ret

packet_counter:
slot_0:  # 5.00; 5.00
    nop dword ptr [rax + rax]
    nop dword ptr [rax]
    push rbp
    mov rbp, rsp
    sub rsp, 8
    push rbx
    push r13
    push r14
    mov r13, qword ptr [rdi + 8]
    mov r14, qword ptr [rdi + 0]
    xor ebx, ebx
    mov dword ptr [rbp - 4], ebx
    mov rsi, rbp
    add rsi, -4
    movabs rdi, 36864
    add rdi, 272
    mov eax, dword ptr [rsi + 0]
    cmp rax, 1
    jae slot_16
slot_11:  # 1.50; 8.00
    shl rax, 3
    add rax, rdi
    mov rax, qword ptr [rax + 0]
    add rax, qword ptr gs:[0]
    jmp slot_17
slot_16:  # 0.25; 0.25
    xor eax, eax
slot_17:  # 0.25; 0.25
    test rax, rax
    je slot_26
slot_18:  # 2.00; 2.00
    mov rdi, qword ptr [rax + 0]
    add rdi, 1
    mov qword ptr [rax + 0], rdi
    sub r13, r14
    mov rdi, qword ptr [rax + 8]
    add r13, rdi
    mov qword ptr [rax + 8], r13
    mov ebx, 2
slot_26:  # 2.50; 6.00
    mov eax, ebx
    pop r14
    pop r13
    pop rbx
    leave
    ret

xsk_redirect:
slot_0:  # 2.50; 2.50
    nop dword ptr [rax + rax]
    nop dword ptr [rax]
    push rbp
    mov rbp, rsp
    mov rsi, qword ptr [rdi + 32]
    mov esi, dword ptr [rsi + 8]
    movabs rdi, 36864
    mov edx, 2
    call helper
slot_6:  # 1.00; 6.00
    leave
    ret
